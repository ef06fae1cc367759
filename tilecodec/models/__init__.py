"""Models on this machine: fetched from the hub, converted from the authors' checkpoints, listed, verified, removed."""
