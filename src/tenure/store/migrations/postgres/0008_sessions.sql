-- Who is signed in to the dashboard: the digest of the secret that the browser keeps, and the digest
-- of the token that it signed in with, hidden with that secret.
CREATE TABLE {schema}.session (
    digest text COLLATE "C" PRIMARY KEY,
    token text NOT NULL,
    expires_at timestamptz NOT NULL
);
