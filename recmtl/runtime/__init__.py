"""What a process needs of its surroundings: files, exits, warnings, progress, versions, other ranks."""
