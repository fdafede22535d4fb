"""The lecture's figures, one module each: `TITLE`, `SECONDS` (whole, quick) and `draw(setting) -> Drawn`."""
