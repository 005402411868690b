"""How a job starts in plain SQL, for tests of what a SQLite file refuses."""

CLOCK = "(SELECT at FROM tenure_now)"
START = f"""
{{verb}} tenure_job SET status = 'processing', attempts = attempts + 1, token = token + 1,
    lease_id = lower(hex(randomblob(16))), lease_expires_at = {CLOCK} + 60000,
    started_at = {CLOCK} + :later, worker = 'by hand', event = 'claimed'
WHERE id IN (SELECT value FROM json_each(:ids))
"""
