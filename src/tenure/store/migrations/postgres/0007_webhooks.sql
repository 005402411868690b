-- Who is told of which moves, and up to which position of the ledger that has been done: deliveries
-- are added as jobs in the commit that moves the position. The secret signs them, so it is kept.
CREATE TABLE {schema}.webhook (
    name text COLLATE "C" PRIMARY KEY,
    id text COLLATE "C" NOT NULL,
    url text NOT NULL,
    secret text NOT NULL,
    events text NOT NULL,
    types text,
    queues text,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    position text COLLATE "C" NOT NULL
);
