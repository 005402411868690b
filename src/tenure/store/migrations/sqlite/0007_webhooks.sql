-- Which transitions each webhook gets, and up to which position of the ledger its deliveries exist:
-- they are added as jobs in the commit that advances the position. The secret signs them.
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
