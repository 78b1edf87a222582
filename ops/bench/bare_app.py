"""What the gateway is measured beside: a FastAPI application whose routes do one Redis command and nothing else."""

import json
import os
import sys
import uuid
from typing import Any

import redis
import uvicorn
from fastapi import FastAPI

app = FastAPI()
client = redis.Redis.from_url(os.environ["FINETUNE_REDIS_URL"], decode_responses=True)


@app.post("/v1/jobs", status_code=202)
def submit(body: dict[str, Any]) -> dict[str, str]:
    """Write the body down."""
    job_id = str(uuid.uuid4())
    client.set(f"bare:{job_id}", json.dumps(body))
    return {"job_id": job_id}


@app.get("/v1/jobs/{job_id}")
def get(job_id: str) -> dict[str, Any]:
    """Read it."""
    found: dict[str, Any] = json.loads(client.get(f"bare:{job_id}") or "{}")
    return found


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
