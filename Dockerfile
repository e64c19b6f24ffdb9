# docker build -t sgmgm . && docker run --rm -p 127.0.0.1:8888:8888 sgmgm
# Then open the address that it prints. With a GPU: docker run --gpus all ...
FROM python:3.12-slim

# Jupyter should not run as root; what the lessons train is kept beside them
RUN useradd --create-home learner && mkdir /course && chown learner /course
WORKDIR /course
USER learner
RUN python -m venv /course/.venv
ENV PATH=/course/.venv/bin:$PATH

COPY --chown=learner . .
RUN pip install --no-cache-dir -e '.[course]' && sgmgm doctor

EXPOSE 8888
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--notebook-dir=notebooks"]
