"""Speed beside the peers, each contender in a process of its own, in turn within one run."""
