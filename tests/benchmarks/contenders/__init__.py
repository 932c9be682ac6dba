"""One module a contender: `unavailable()` says why it cannot run here, and `run(job)` runs and times it once.

Each run is a process of its own (`python -m tests.benchmarks.contenders <name> <job file>`), so that no
memory, garbage or thread of one weighs on another. All are timed alike: from the first event that is
folded to the moment when the last one is folded *and* its offset is committed with the state made durable
as the contender does it (a synced store, or an acknowledged changelog). `refold` also pays
for all of its start and end, and so does `bound`, which folds and commits nothing; `steady` pays for neither.
"""
