-- Who may call the HTTP API. Of a token only its digest is kept, and the row stays after its
-- revocation: its name is in the ledger.
CREATE TABLE tenure_access (
    name TEXT PRIMARY KEY NOT NULL,
    prefix TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    queues TEXT,  -- the only ones it is for; NULL: every queue
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    used_at INTEGER,
    revoked_at INTEGER,
    revoked_by TEXT
) STRICT;
