"""Why answers failed, what would help, and by how much: from the stored answers alone."""
