"""batch.py URL PICTURE...: many pictures as one batch, through the official openai client."""

import base64
import json
import sys
import time
from pathlib import Path

from openai import OpenAI

url, *pictures = sys.argv[1:]


def line(path: str) -> str:
    picture = "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
    body = {"image": picture, "max_tokens": 64}
    return json.dumps({"custom_id": path, "method": "POST", "url": "/v1/describe", "body": body})


with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
    requests = "\n".join(line(path) for path in pictures).encode()
    file = client.files.create(file=("requests.jsonl", requests), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/describe", completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
        print(batch.request_counts, file=sys.stderr)
    if batch.output_file_id is None:
        sys.exit(f"{batch.status}: {batch.errors}")
    for answer in map(json.loads, client.files.content(batch.output_file_id).text.splitlines()):
        print(answer["custom_id"], answer["response"]["body"]["text"])
