"""The page of ``explore``: a map of z_sem, and edits that follow a slider. FastAPI and uvicorn come with MLflow."""
