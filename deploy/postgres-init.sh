#!/bin/sh
# Runs once, when the volume is empty. The request log has its own database and user, so that a leaked password of the
# service does not allow anyone to change the model that is served.
set -eu
psql --set ON_ERROR_STOP=1 --set password="$REQUESTS_DB_PASSWORD" --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE requests LOGIN PASSWORD :'password';
CREATE DATABASE requests OWNER requests;
REVOKE CONNECT ON DATABASE mlflow FROM PUBLIC;
SQL
