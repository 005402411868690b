-- Which transitions each webhook gets, and up to which position of the ledger its deliveries exist:
-- they are added as jobs in the commit that advances the position. The secret signs them.
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
