"""One module for each table beside `job` and `transition`, written once for both engines.

To add a thing with a table takes six edits: its value in `rules/<x>.py`, its statements in
`store/tables/<x>.py`, its table in `store/migrations/`, and its verbs in `app/<x>.py`,
`http/<x>.py` and `cli/<x>.py`. Neither `Store`, `database.py` nor the readers and writers
of the engines change.

A module here has functions. To read, they take a connection that answers (`Reads`), as in
`tokens.every(store.read)`. To write, they take one in a transaction (`Statements`), as in
`store.write("operator", lambda db: tokens.revoke(db, name, actor))`. SQL is written over the
`Dialect` of the engine: `d.table("webhook")`, `d.value`, `d.now`, `d.time("created_at")`.
"""
