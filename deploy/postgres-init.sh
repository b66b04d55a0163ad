#!/bin/sh
# Run once, when the volume is empty. The request log has a database and a user of its own, so that whoever gets
# hold of the service's password cannot change which model is served.
set -eu
psql --set ON_ERROR_STOP=1 --set password="$REQUESTS_DB_PASSWORD" --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE requests LOGIN PASSWORD :'password';
CREATE DATABASE requests OWNER requests;
REVOKE CONNECT ON DATABASE mlflow FROM PUBLIC;
SQL
