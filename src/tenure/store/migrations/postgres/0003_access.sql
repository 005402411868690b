-- Who may call the HTTP API. Of a token only its digest is kept, and the row stays after its
-- revocation: its name is in the ledger.
CREATE TABLE {schema}.access (
    name text COLLATE "C" PRIMARY KEY,
    prefix text NOT NULL,
    digest text COLLATE "C" NOT NULL UNIQUE,
    scopes text NOT NULL,
    queues text,  -- the only ones it is for; NULL: every queue
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz,
    used_at timestamptz,
    revoked_at timestamptz,
    revoked_by text
);
