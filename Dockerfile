# Refold's image: `refold`, by default as a worker, as a user without rights.
#
#   docker build -t refold .
#   docker run --read-only --tmpfs /tmp -v state:/var/lib/refold -p 127.0.0.1:8080:8080 \
#     -e REFOLD_BOOTSTRAP_SERVERS=kafka:9092 refold worker --projections order-summary --topic orders
#
# Written to are /var/lib/refold, which has the state, and /tmp. Code of your own: an image from this one, with its modules
# in /app, where they are looked for.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY projections projections
COPY streams streams
RUN python -m pip wheel --quiet --no-deps --wheel-dir /wheels .
RUN python -m venv /opt/refold
RUN /opt/refold/bin/python -m pip install --quiet --no-cache-dir -c requirements.lock "$(echo /wheels/refold-*.whl)[otel,postgres,snapshots]"
# Nothing is to be installed later.
RUN /opt/refold/bin/python -m pip uninstall --quiet --yes pip setuptools

FROM python:${PYTHON}-slim
# As process 1, it passes signals on and takes in orphans.
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/refold /opt/refold
RUN install -d -m 0755 /app && install -d -o 65532 -g 65532 -m 0750 /var/lib/refold
ENV PATH=/opt/refold/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    REFOLD_HTTP_HOST=0.0.0.0 \
    REFOLD_LOG_FORMAT=json \
    REFOLD_STATE_DIR=/var/lib/refold
WORKDIR /app
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "refold"]
CMD ["worker"]
