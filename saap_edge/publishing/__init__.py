"""Results that travel: a model card, and a repository on the hub in the layout that runtimes look for."""
