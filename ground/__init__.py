"""What every room stands on: the user's error, the output folder, the progress bar, the HTML page."""
