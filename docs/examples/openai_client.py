"""openai_client.py URL PICTURE: a chat with a picture through the official client."""

import base64
import sys
from pathlib import Path

from openai import OpenAI

url, picture = sys.argv[1:]
data = base64.b64encode(Path(picture).read_bytes()).decode()

with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        stream=True,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Describe the image."},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                ],
            }
        ],
        extra_body={"quality": "fast"},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
