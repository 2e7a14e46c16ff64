"""From a cache to a saved run: tasks, fitting, choosing, sweeping, extending."""
