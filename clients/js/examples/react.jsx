// A hook: the newest message of some channels, and how the connection is.
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { connect } from "../src/index.js"; // "@push-stream/client"

export function useStream(url, channels, options) {
  const [message, setMessage] = useState();
  const [state, setState] = useState("connecting");
  const key = channels.join("/");
  useEffect(() => {
    const stream = connect(url, { channels: key.split("/"), share: true, ...options });
    stream.on("message", setMessage);
    stream.on("state", setState);
    return () => stream.close();
    // The options are those of the first time.
  }, [url, key]);
  return { message, state };
}

function Score({ match }) {
  const { message, state } = useStream("/sub", [`match-${match}`]);
  return <p data-state={state}>{message ? message.data : "No score yet"}</p>;
}

createRoot(document.getElementById("root")).render(<Score match={7} />);
