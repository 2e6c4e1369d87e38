# A node in a container: docker build -t capanode . && docker run --gpus all -v capanode:/data -p 4101:4101 capanode
# TORCH_INDEX chooses torch's build, as `capanode setup --dry-run` says it for a machine.
FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /dist .

FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu126
COPY --from=build /dist /dist
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.9,<3" \
    && pip install --no-cache-dir "$(ls /dist/*.whl)[node]" \
    && rm -r /dist \
    && useradd --uid 10001 --create-home capanode \
    && install -d -o capanode -g capanode -m 0700 /data
USER capanode
ENV CAPANODE_DATA_DIR=/data
VOLUME /data
EXPOSE 4101
# `capanode init` changes nothing where a key is.
CMD ["sh", "-c", "capanode init && exec capanode start"]
