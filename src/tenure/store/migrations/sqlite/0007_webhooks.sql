-- Who is told of which moves, and up to which position of the ledger that has been done: deliveries
-- are added as jobs in the commit that moves the position. The secret signs them, so it is kept.
CREATE TABLE tenure_webhook (
    name TEXT PRIMARY KEY NOT NULL,
    id TEXT NOT NULL,
    url TEXT NOT NULL,
    secret TEXT NOT NULL,
    events TEXT NOT NULL,
    types TEXT,
    queues TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    position TEXT NOT NULL
) STRICT;
