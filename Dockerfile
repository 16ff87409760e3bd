# A container for the command `drender`. For NVIDIA GPUs choose the JAX of your driver; the host needs the NVIDIA
# container toolkit. Without the argument it runs on CPUs.
#
#   docker build -t drender --build-arg EXTRAS=cuda13,app .        # or cuda12,app
#   docker run --gpus all -v $PWD:/work -v drender:/cache drender relight --input clip.mp4 --output out
#   docker run --gpus all -p 127.0.0.1:7860:7860 -v drender:/cache drender app --host 0.0.0.0
FROM python:3.13-slim
ARG EXTRAS=app
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY drender drender
# CUDA comes with JAX's packages, so the base image needs none.
RUN pip install --no-cache-dir ".[${EXTRAS}]"
ENV DRENDER_CACHE=/cache HF_HOME=/cache/huggingface
VOLUME /cache
WORKDIR /work
ENTRYPOINT ["drender"]
CMD ["--help"]
