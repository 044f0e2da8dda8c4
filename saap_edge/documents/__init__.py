"""The documents that stages write and others read, one class each.

bench.json, gate.json, verify.json and plan.json are here; manifest.json is `artifacts.Manifest` and report.json
`report.document.Report`. All six share `documents.base`; `saap-edge schema` prints the JSON schema of each.
"""
