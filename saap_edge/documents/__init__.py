"""The documents that stages write and others read, one class each; `saap-edge schema` prints their JSON schemas.

All share `documents.base`. manifest.json is `artifacts.Manifest`, the others are here.
"""
