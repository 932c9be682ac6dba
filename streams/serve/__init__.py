"""The worker: a service that folds, watches and serves all projections of a team, for months."""
