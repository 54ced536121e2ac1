"""The account around SageMaker: connections, images, quotas, prices, logs, events, rights and the bill."""
