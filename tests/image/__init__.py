"""The container image, built and run for real: ``make image``.

``bin/test-image`` prepares namespaces with podman in them, then runs ``build`` with the network of
the machine, and ``walk`` in a network of its own. Each step prints one line; the first failure ends
the run with its reason. No test of ``bin/test`` starts this: it takes minutes and needs root.
"""
