"""What every room needs: settings, eps, errors, notices, plug-ins, devices."""
