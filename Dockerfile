# The service with one packaged pipeline:
#   docker build --build-arg WHEEL=packages/quickstart/en_bert_ner_sample-1.0.0/dist/*.whl -t bert-ner .
#   docker run --rm -p 8000:8000 -e BERT_NER_API_KEY=... bert-ner
FROM python:3.11-slim
ARG WHEEL=packages/*/*/dist/*.whl
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY app/requirements.txt constraints.txt ./
RUN sed '/^# The page/,$d' requirements.txt > needed.txt && pip install -r needed.txt -c constraints.txt
# Without dependencies, because what the wheel requires is installed already
COPY ${WHEEL} ./
RUN pip install --no-deps ./*.whl && rm ./*.whl && useradd --create-home service
COPY app ./app
COPY bert_ner ./bert_ner
COPY common ./common
USER service
EXPOSE 8000
CMD ["python", "-m", "app.service", "--host", "0.0.0.0"]
