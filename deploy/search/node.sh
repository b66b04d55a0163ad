#!/bin/sh
# The command of each node of a search; arguments are further options of `cifar-mlflow tune`. Nodes may come and go:
# each takes trials until all that STUDY_TRIALS asks for are done.
#   MLFLOW_TRACKING_URI  http://mlflow:5000
#   STUDY_STORAGE        postgresql+psycopg://user@host/optuna; the password is in PGPASSWORD or ~/.pgpass
#   STUDY_NAME           name of the study
#   STUDY_TRIALS         number of trials, of all nodes together
#   STUDY_WORKERS        worker processes of this node (1)
#   CIFAR_MLFLOW_CACHE   folder on a disk of this node: decoded images, checkpoints and locks. No shared folder.
set -eu
: "${MLFLOW_TRACKING_URI:?}" "${STUDY_STORAGE:?}" "${STUDY_NAME:?}" "${STUDY_TRIALS:?}" "${CIFAR_MLFLOW_CACHE:?}"
exec cifar-mlflow tune --study "$STUDY_NAME" --storage "$STUDY_STORAGE" --trials "$STUDY_TRIALS" \
    --workers "${STUDY_WORKERS:-1}" "$@"
