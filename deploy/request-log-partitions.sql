-- Divide the request log in PostgreSQL into a partition per day; see docs/operate.md. Run it once a day as the owner
-- of the table, which the service has created:
--   psql -h postgresql -U requests -d requests -v ON_ERROR_STOP=1 -f request-log-partitions.sql
-- The first run renames the table to request_log_old and creates a partitioned one in its place. Each run creates the
-- partitions of the next week and drops those that ended more than 30 days ago.
DO $$
DECLARE
  days_kept CONSTANT bigint := 30;
  days_ahead CONSTANT bigint := 7;
  today CONSTANT bigint := floor(extract(epoch FROM now()) / 86400); -- `time` is in seconds since 1970
  day bigint;
BEGIN
  IF (SELECT relkind FROM pg_class WHERE oid = 'request_log'::regclass) = 'r' THEN
    ALTER TABLE request_log RENAME TO request_log_old;
    -- Without a primary key: in a partitioned table, it would have to contain `time`.
    CREATE TABLE request_log (LIKE request_log_old INCLUDING DEFAULTS, UNIQUE (request_id, item, time))
      PARTITION BY RANGE (time);
    ALTER SEQUENCE request_log_id_seq OWNED BY request_log.id;
    CREATE INDEX ON request_log (id);
    CREATE INDEX ON request_log (time);
    CREATE INDEX ON request_log (feedback_time) WHERE feedback_time IS NOT NULL;
  END IF;
  FOR day IN today - 1 .. today + days_ahead LOOP
    EXECUTE format(
      'CREATE TABLE IF NOT EXISTS request_log_%s PARTITION OF request_log FOR VALUES FROM (%s) TO (%s)',
      day, day * 86400, (day + 1) * 86400);
  END LOOP;
  FOR day IN
    SELECT substring(relname FROM '\d+$')::bigint FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'request_log'::regclass
  LOOP
    IF day < today - days_kept THEN
      EXECUTE format('DROP TABLE request_log_%s', day);
    END IF;
  END LOOP;
END $$;
