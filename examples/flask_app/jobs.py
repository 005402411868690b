"""The tables and the jobs of the newsletter."""

from __future__ import annotations

from flask import current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import JobContext
from tenure.contrib.flask import Tenure


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
queue = Tenure(actor="newsletter")


class Subscriber(Base):
    __tablename__ = "subscribers"
    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(unique=True)


class Mail(Base):
    __tablename__ = "mails"
    id: Mapped[int] = mapped_column(primary_key=True)
    address: Mapped[str]
    text: Mapped[str]


@queue.job
def send_welcome(subscriber: int) -> None:
    address = db.session.get_one(Subscriber, subscriber).address
    sender = current_app.config.get("SENDER", "the editors")
    db.session.add(Mail(address=address, text=f"Welcome! Yours, {sender}"))
    db.session.commit()


@queue.job(queue="issues")
def send_issue(context: JobContext, text: str) -> int:
    """One mail to each subscriber, exactly once: the commit of the mails completes the job."""
    found = db.session.scalars(select(Subscriber).order_by(Subscriber.id)).all()
    for number, subscriber in enumerate(found, 1):
        db.session.add(Mail(address=subscriber.address, text=text))
        context.progress(number, total=len(found))
    context.complete(db.session, len(found))
    db.session.commit()
    return len(found)
