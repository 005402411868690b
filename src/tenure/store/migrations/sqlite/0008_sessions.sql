-- Who is signed in to the dashboard: the digest of the secret that the browser keeps, and the digest
-- of the token that it signed in with, hidden with that secret.
CREATE TABLE tenure_session (
    digest TEXT PRIMARY KEY NOT NULL,
    token TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
