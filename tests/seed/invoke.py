"""Calls the seed's Lambda, unmodified, with one event; prints its answer.

Usage: invoke.py LAMBDA_FILE EVENT_JSON. The table's endpoint and credentials come from the environment, as boto3
reads them. The Lambda names its table itself, so the daemon's table has to have that name.
"""

import importlib.util
import json
import sys

spec = importlib.util.spec_from_file_location("lambda_function", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
answer = module.lambda_handler(json.loads(sys.argv[2]), None)
text = answer["content"][0]["text"]
print(json.dumps({"isError": answer.get("isError", False), "text": text}))
