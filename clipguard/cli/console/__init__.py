"""What commands print, and where: tables, progress, streams, settings as flags."""
