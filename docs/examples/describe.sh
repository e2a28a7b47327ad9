#!/usr/bin/env bash
# describe.sh PICTURE: the whole answer, then the same streamed, then as a job.
set -euo pipefail
url=${TWIGSERVE_URL:-http://127.0.0.1:8000}

curl -sS --fail-with-body "$url/v1/describe" -F "image=@$1" -F quality=fast
echo
curl -sSN --fail-with-body "$url/v1/describe" -F "image=@$1" -F stream=true

# A job: the answer to the POST names it, its events can be followed from any point on.
job=$(curl -sS --fail-with-body -o /dev/null -D - -H "Prefer: respond-async" "$url/v1/describe" -F "image=@$1" \
  | sed -n 's/^[Ll]ocation: *//p' | tr -d '\r')
curl -sSN --fail-with-body "$url$job/events" -H "Last-Event-ID: 0-0"
