# docker build -t backsweep . ; docker run --rm --network none -v "$PWD:/work" backsweep scan MODEL --data DATA --out report
FROM python:3.12-slim
# the CPU build: half a gigabyte instead of several
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.10,<2.14"
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
COPY docs/methods /source/docs/methods
RUN pip install --no-cache-dir "/source[data,hf,onnx,serve]" && rm -rf /source
RUN useradd --create-home backsweep
USER backsweep
WORKDIR /work
ENTRYPOINT ["backsweep"]
CMD ["--help"]
