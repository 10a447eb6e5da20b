# Two stages: what builds stays behind, and so do the lock's packages that only development needs.
FROM python:3.12-slim AS build
WORKDIR /build
RUN python -m venv /build/tools && python -m venv /opt/seriatim

# Every package is checked against its hash here. The steps below take packages from /wheels and from nowhere else.
COPY requirements.lock .
RUN tools/bin/pip wheel --require-hashes --wheel-dir /wheels -r requirements.lock
RUN tools/bin/pip install --no-index --find-links /wheels hatchling

COPY pyproject.toml README.md LICENSE ./
COPY lua lua
COPY src src
RUN tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .
RUN /opt/seriatim/bin/pip install --no-index --find-links /wheels seriatim

FROM python:3.12-slim
COPY --from=build /opt/seriatim /opt/seriatim
# A new volume that is mounted here takes over owner and mode, so that the worker may keep its signing key in it.
RUN useradd --system --uid 10001 seriatim && install -d -o seriatim -g seriatim -m 0700 /var/lib/seriatim
USER seriatim
WORKDIR /var/lib/seriatim
ENV PATH=/opt/seriatim/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
ENTRYPOINT ["seriatim"]
CMD ["serve", "--host", "0.0.0.0"]
