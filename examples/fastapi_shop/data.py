"""The tables of the shop, and its sessions."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///shop.db")
"""One variable for both: Tenure takes the URL as SQLAlchemy has it."""
engine = create_async_engine(DATABASE_URL)
sessions = async_sessionmaker(engine, expire_on_commit=False)


@event.listens_for(engine.sync_engine, "connect")
def be_careful(connection: Any, record: object) -> None:
    """Let SQLite keep what it has committed, and leave its log to Tenure."""
    if engine.dialect.name == "sqlite":
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA wal_autocheckpoint = 0")
        cursor.close()


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    cents: Mapped[int]
    state: Mapped[str] = mapped_column(default="placed")


class Mail(Base):
    __tablename__ = "mails"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


async def transaction() -> AsyncIterator[AsyncSession]:
    """A session whose transaction is committed at the end, or rolled back."""
    async with sessions.begin() as session:
        yield session


Session = Annotated[AsyncSession, Depends(transaction, scope="function")]
"""For path functions. It is committed before the response is sent."""


async def make_tables() -> None:
    """Make the tables that are missing. Several processes may do that at once."""
    for is_last in (False, True):
        try:
            async with sessions.begin() as session:
                for table in Base.metadata.sorted_tables:
                    await session.execute(CreateTable(table, if_not_exists=True))
            return
        except (IntegrityError, ProgrammingError):  # another process has just made them
            if is_last:
                raise
