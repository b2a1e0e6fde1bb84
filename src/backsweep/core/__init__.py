"""What everything rests on: errors, files, seeds, progress, statistics, methods and how they are found."""
