"""Building blocks of networks: one kind of layer a file, each registered with its paper."""
