"""`python -m saap_edge`: what launchers of several processes start."""

from saap_edge.cli import main

main()
