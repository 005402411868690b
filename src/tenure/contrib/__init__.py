"""Tenure with other programs: each module needs an extra and imports what `tenure` exports."""
