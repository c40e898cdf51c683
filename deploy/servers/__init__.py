"""Private RabbitMQ, PostgreSQL and MariaDB servers for demo and tests; the system's own are never touched."""

from deploy.servers.errors import ServerError
from deploy.servers.mariadb import PrivateMariaDB
from deploy.servers.postgresql import PrivatePostgreSQL
from deploy.servers.rabbitmq import PrivateRabbitMQ

__all__ = ["PrivateMariaDB", "PrivatePostgreSQL", "PrivateRabbitMQ", "ServerError"]
