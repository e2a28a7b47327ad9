"""client.py URL PICTURE: the whole answer, a stream, a job."""

import sys

from service.client import Client, Description, TwigserveError

url, picture = sys.argv[1:]

with Client(url) as client:
    try:
        answer = client.describe(picture, prompt="What is in the image?", quality="fast")
    except TwigserveError as error:
        sys.exit(f"no answer: {error}")
    print(answer.text, answer.usage.prompt_tokens_details)

    for event in client.stream(picture):
        if isinstance(event, Description):
            print(f"\n{event.metrics.tokens_per_second} tokens/s")
        else:
            print(event.text, end="", flush=True)

    job = client.submit(picture, max_tokens=32)
    print(client.wait(job.id).text)
