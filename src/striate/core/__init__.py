"""The ground floor: errors, registries, settings, results, run folders. Imports nothing else of Striate."""
