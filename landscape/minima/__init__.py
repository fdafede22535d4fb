"""Polish, certify, identify and count the minima that restarts found."""
