-- Runs once, as the superuser, when the volume is empty: the role that migrate and relay log in as.
CREATE ROLE sagaz LOGIN REPLICATION PASSWORD 'changeme';
ALTER DATABASE saga_db OWNER TO sagaz;
-- So that the server need not decode the relay's own marks (sagaz-relay doctor explains more).
GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_session_setup(text) TO sagaz;
GRANT SELECT ON pg_replication_origin TO sagaz;
